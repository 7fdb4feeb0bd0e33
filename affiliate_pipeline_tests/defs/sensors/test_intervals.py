"""All sensors run by default, and often enough."""

import dagster as dg

from affiliate_pipeline.definitions import build_definitions

MAX_INTERVAL_S = {
    "alert_delivery": 30,
    "digest": 60,
    "failed_run_alert": 30,
    "failing_tick_alert": 30,
    "heartbeat": 60,
    "kickback_history": 30,
    "stale_days": 60,
    "watch": 60,
}


def test_every_sensor_runs_by_default_and_often_enough(monkeypatch):
    monkeypatch.setenv("AFFILIATE_DIGEST", "daily")
    sensors = {sensor.name: sensor for sensor in build_definitions().sensors or ()}
    assert sensors.keys() == MAX_INTERVAL_S.keys()
    for name, sensor in sensors.items():
        assert sensor.default_status == dg.DefaultSensorStatus.RUNNING, name
        assert (sensor.minimum_interval_seconds or 0) <= MAX_INTERVAL_S[name], name
