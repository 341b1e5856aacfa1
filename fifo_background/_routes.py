from starlette.types import Scope


def asks_for_tasks(scope: Scope) -> bool:
    return True
