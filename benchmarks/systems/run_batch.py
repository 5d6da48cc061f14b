"""`vllm run-batch` as its documentation shows it: python run_batch.py SETTINGS.json

Only turns rows into its input format and settings into its options; it becomes that command.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    """Does what the settings say: model, engine, rows, output."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in Path(settings["rows"]).read_text(encoding="utf-8").splitlines()]
    output = Path(settings["output"])
    output.mkdir(parents=True, exist_ok=True)
    batch = output.with_name("batch.jsonl")
    batch.write_text("".join(json.dumps(request(row, settings["model"])) + "\n" for row in rows), encoding="utf-8")
    options = [option for name, value in settings["engine"].items() for option in flag(name, value)]
    sys.argv = ["vllm", "run-batch", "-i", str(batch), "-o", str(output / "results.jsonl"), *options]
    from vllm.entrypoints.cli.main import main as vllm

    vllm()


def request(row: dict[str, object], model: str) -> dict[str, object]:
    """A line of the batch format."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": row["source"]}],
        "temperature": 0,
        "max_tokens": row["budget"],
        "ignore_eos": True,
    }
    return {"custom_id": row["id"], "method": "POST", "url": "/v1/chat/completions", "body": body}


def flag(name: str, value: object) -> list[str]:
    """An engine argument as vLLM's command line has it."""
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option] if value else []
    return [option, str(value)]


if __name__ == "__main__":
    main()
