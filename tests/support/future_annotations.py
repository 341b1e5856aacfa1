"""Endpoints whose annotations are strings."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from fifo_background import BackgroundTasks

router = APIRouter()
seen: list[Any] = []


def dependency(tasks: BackgroundTasks) -> BackgroundTasks:
    return tasks


@router.get("/future")
async def future(tasks: BackgroundTasks, same: Annotated[Any, Depends(dependency)]) -> None:
    seen.append((type(tasks), tasks is same))
