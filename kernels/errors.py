"""The one error that only an operator library has: the asked-for backend cannot run here."""


class BackendUnavailable(RuntimeError):
    """The backend asked for by name cannot run this call; the message says why and what can."""
