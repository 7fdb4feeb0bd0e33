"""The PostgreSQL server that the application uses where no database is configured.

`server` starts and stops it, `cluster` is its state on disk, `programs` runs PostgreSQL's own programs. No SQL about the
package's tables is here.
"""
