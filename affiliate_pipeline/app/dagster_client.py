"""Launches and cancels runs through the GraphQL API of Dagster's webserver, as its UI does.

So the runs belong to the code location, as those of the UI do. The commands that use it import no Dagster, which would
take two seconds and 100 MB.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any, cast

import httpx

from affiliate_pipeline.app.cli import CommandError
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.domain.wording import up_command
from affiliate_pipeline.http.network import DIRECT, client

REQUEST_LIMIT_S = 60
CANCEL_WAIT_S = 30
IN_PROGRESS = ("QUEUED", "NOT_STARTED", "MANAGED", "STARTING", "STARTED", "CANCELING")
# The code location, and the module with its definitions.
LOCATION = "affiliate_pipeline.definitions"
_REPOSITORY = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__"}
_LOCATION = """
query Location($name: String!) {
  workspaceLocationEntryOrError(name: $name) {
    ... on WorkspaceLocationEntry {
      loadStatus locationOrLoadError { __typename ... on PythonError { className message } }
    }
  }
}"""
_LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message }
  }
}"""
_RUNS = """
query Runs($filter: RunsFilter!) { runsOrError(filter: $filter) { ... on Runs { results { runId status } } } }"""
_FAILURES = """
query Failures($run: ID!, $after: String) {
  logsForRun(runId: $run, afterCursor: $after) {
    ... on PythonError { message }
    ... on EventConnection {
      cursor hasMore
      events {
        ... on RunFailureEvent { message error { message } }
        ... on ExecutionStepFailureEvent { stepKey error { message } failureMetadata { description } }
      }
    }
  }
}"""
_CANCEL = """
mutation Cancel($runs: [String!]!) { terminateRuns(runIds: $runs, terminatePolicy: SAFE_TERMINATE) { __typename } }"""


class DagsterUnavailable(CommandError):
    """The webserver does not respond."""


class DagsterClient:
    """The client of the webserver on this port of 127.0.0.1; raises `CommandError` and `DagsterUnavailable`."""

    def __init__(self, port: int):
        self._client = client(DIRECT, REQUEST_LIMIT_S)
        self._url = f"http://127.0.0.1:{port}/graphql"

    def is_ready(self) -> bool:
        """Whether the code location has loaded; raises `CommandError` if it cannot be loaded."""
        entry = self._execute(_LOCATION, name=LOCATION)["workspaceLocationEntryOrError"]
        location_or_error: dict[str, Any] = entry.get("locationOrLoadError") or {}
        if location_or_error.get("className") == "DagsterUserCodeUnreachableError":
            return False  # the code server is still starting
        if location_or_error.get("__typename") == "PythonError":
            raise CommandError(f"Dagster cannot load {LOCATION}: {_last_line(location_or_error['message'])}")
        return entry.get("loadStatus") == "LOADED" and bool(location_or_error)

    def launch(self, keys: Sequence[str], days: Sequence[date]) -> str:
        """Launch a run of these assets over consecutive days (empty: the assets have no partitions); return its id."""
        bounds = {"start": days[0], "end": days[-1]} if days else {}
        selection = [{"path": key.split("/")} for key in keys]
        tags = [{"key": f"dagster/asset_partition_range_{bound}", "value": f"{day}"} for bound, day in bounds.items()]
        params = {
            "selector": {**_REPOSITORY, "jobName": "__ASSET_JOB", "assetSelection": selection},
            "executionMetadata": {"tags": tags},
        }
        launched = self._execute(_LAUNCH, params=params)["launchRun"]
        if launched["__typename"] != "LaunchRunSuccess":
            reason = _last_line(launched.get("message") or launched["__typename"])
            raise CommandError(f"Dagster refused to launch {', '.join(keys)}: {reason}")
        return launched["run"]["runId"]

    def statuses(self, run_ids: Collection[str]) -> dict[str, str]:
        """Dagster's status of each run, by id; a deleted run is left out."""
        return self._find_statuses(runIds=[*run_ids])

    def failures(self, run_id: str) -> Iterator[str]:
        """The reasons of the steps that failed, or why the run failed if no step did."""
        of_steps: list[str] = []
        of_run: list[str] = []
        cursor = None
        has_more = True
        while has_more:
            page = self._execute(_FAILURES, run=run_id, after=cursor)["logsForRun"]
            if "events" not in page:
                of_run.append(_last_line(page.get("message", "the run was deleted")))
                break
            for event in page["events"]:
                if "stepKey" in event:
                    of_steps.append(_failure_of_step(event))
                elif event:  # the failure of the run; the query selects no field of any other event
                    of_run.append(_error_line(event) or event["message"])
            cursor = page["cursor"]
            has_more = page["hasMore"]

        yield from of_steps or of_run

    def cancel(self, run_ids: Collection[str] = ()) -> None:
        """Cancel these runs, by default all in progress, and wait at most `CANCEL_WAIT_S` until they have ended.

        Dagster shows the days that the runs have landed as materialized and the other days as before, and reports no
        failed run.
        """
        deadline = time.monotonic() + CANCEL_WAIT_S
        run_filter = {"runIds": [*run_ids]} if run_ids else {}
        while time.monotonic() < deadline:
            running = self._find_statuses(**run_filter, statuses=IN_PROGRESS)
            if not running:
                break
            cancellable = [run_id for run_id, status in running.items() if status != "CANCELING"]
            if cancellable:
                self._execute(_CANCEL, runs=cancellable)
            time.sleep(0.2)

    def _find_statuses(self, **run_filter: object) -> dict[str, str]:
        """The status of each run that the `RunsFilter` selects, by id."""
        results = self._execute(_RUNS, filter=run_filter)["runsOrError"]["results"]
        return {run["runId"]: run["status"] for run in results}

    def _execute(self, query: str, **variables: object) -> dict[str, Any]:
        """The data of the response; raises `DagsterUnavailable`, or `CommandError` if the request is refused."""
        try:
            response = self._client.post(self._url, json={"query": query, "variables": variables})
            body = cast(Mapping[str, Any], response.json())
        except (AffiliateError, httpx.HTTPError, ValueError) as error:
            raise DagsterUnavailable(
                f"Dagster's webserver does not respond ({error})", f"Start it: `{up_command()}`"
            ) from None
        if errors := body.get("errors"):
            raise CommandError(f"Dagster's webserver refused a request: {_last_line(errors[0]['message'])}")
        return body["data"]


def _failure_of_step(event: Mapping[str, Any]) -> str:
    """The description in the failure's metadata, otherwise the last line of its error."""
    metadata: dict[str, str] = event.get("failureMetadata") or {}
    return metadata.get("description") or _error_line(event)


def _error_line(event: Mapping[str, Any]) -> str:
    """The last line of the event's error; empty without an error."""
    error: dict[str, str] = event.get("error") or {}
    return _last_line(error.get("message", ""))


def _last_line(message: str) -> str:
    lines = message.strip().splitlines()
    return lines[-1] if lines else ""


def save_port(home: Path, port: int) -> None:
    """Save the webserver's port for the other commands of this folder."""
    _port_file(home).write_text(f"{port}")


def drop_port(home: Path) -> None:
    """Remove the saved port."""
    _port_file(home).unlink(missing_ok=True)


def saved_client(home: Path) -> DagsterClient | None:
    """A client for the saved port, whose webserver may have been killed; None if no port is saved."""
    with suppress(OSError, ValueError):
        return DagsterClient(int(_port_file(home).read_text()))
    return None


def _port_file(home: Path) -> Path:
    return home / "dagster.port"
