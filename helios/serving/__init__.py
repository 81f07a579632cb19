"""The web: jobs, live sessions, the studio page; it receives ready pipelines."""

__all__: list[str] = []
