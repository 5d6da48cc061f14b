"""Conversations that rows bring along: a list of {role, content}, or a JSON text of one, checked turn by turn.

Must never know presets or jobs.
"""

import json
from collections.abc import Mapping

from seedx_batch.errors import RowRejected
from seedx_batch.records import Message


def read_messages(value: object, column: str) -> list[Message]:
    """The messages in a row's column.

    Raises:
        RowRejected: bad_messages: it holds something else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _bad(column, f"holds a text that is no JSON: {error}") from error
    if value is None:
        raise _bad(column, "is null")
    if not isinstance(value, list):
        raise _bad(column, f"holds a value of type {type(value).__name__}, not a list of {{role, content}}")
    messages = [_read_turn(turn, f"turn {number}", column) for number, turn in enumerate(value, start=1)]
    if not any(message["content"].strip() for message in messages):
        raise _bad(column, "has no text in it" if messages else "is an empty list")
    return messages


def _read_turn(turn: object, where: str, column: str) -> Message:
    if not isinstance(turn, Mapping):
        raise _bad(column, f"{where} is no {{role, content}}")
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(role, str) or not role:
        raise _bad(column, f"{where} has no role")
    if not isinstance(content, str):
        raise _bad(column, f"{where} has no content" if content is None else f"{where}: its content is no text")
    further = sorted(str(key) for key in turn if key not in ("role", "content") and turn[key] is not None)
    if further:
        raise _bad(column, f"{where} has {', '.join(further)}, which is not understood; role and content are")
    return Message(role=role, content=content)


def _bad(column: str, what: str) -> RowRejected:
    return RowRejected("bad_messages", f"column '{column}' {what}")
