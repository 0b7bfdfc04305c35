"""One run as processes: supervisor, worker, control, resume, ranks on hosts."""
