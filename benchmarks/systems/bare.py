"""vLLM's offline `LLM` as one would use it in a script of one's own: python bare.py SETTINGS.json

Reads JSONL, generates, writes parquet at the end (or a part for each shard), and tells when it was loaded and done.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

_WINDOWS = 2


def main() -> None:
    """Does what the settings say: method, shard_rows, engine, rows, output, times."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    llm = LLM(**settings["engine"])
    loaded_at = time.monotonic()
    rows = [json.loads(line) for line in Path(settings["rows"]).read_text(encoding="utf-8").splitlines()]
    output = Path(settings["output"])
    output.mkdir(parents=True, exist_ok=True)
    size = settings["shard_rows"] or len(rows)
    for start in range(0, len(rows), size):
        shard = rows[start : start + size]
        write(output / f"part-{start // size:05d}.parquet", shard, METHODS[settings["method"]](llm, shard))
    times = {"loaded_at": loaded_at, "written_at": time.monotonic()}
    Path(settings["times"]).write_text(json.dumps(times), encoding="utf-8")


def params_of(row: dict[str, Any]) -> SamplingParams:
    """Greedy, and exactly as long as the row's budget."""
    return SamplingParams(
        temperature=0, max_tokens=row["budget"], ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
    )


def generate(llm: LLM, rows: list[dict[str, Any]]) -> list[Any]:
    """One call of `LLM.generate`."""
    return llm.generate([row["source"] for row in rows], [params_of(row) for row in rows], use_tqdm=False)


def chat(llm: LLM, rows: list[dict[str, Any]]) -> list[Any]:
    """One call of `LLM.chat`."""
    messages = [[{"role": "user", "content": row["source"]}] for row in rows]
    return llm.chat(messages, [params_of(row) for row in rows], use_tqdm=False)


def step(llm: LLM, rows: list[dict[str, Any]]) -> list[Any]:
    """The bare loop of `add_request` and `step`, with a window of requests in the engine."""
    engine, tokenizer = llm.llm_engine, llm.get_tokenizer()
    window = _WINDOWS * engine.vllm_config.scheduler_config.max_num_seqs
    left: Iterator[tuple[int, dict[str, Any]]] = iter(enumerate(rows))
    outputs: dict[int, Any] = {}
    num_added = 0
    while len(outputs) < len(rows):
        while num_added - len(outputs) < window and (pair := next(left, None)):
            number, row = pair
            token_ids = tokenizer.encode(row["source"])
            engine.add_request(str(number), {"type": "token", "prompt_token_ids": token_ids}, params_of(row))
            num_added += 1
        outputs |= {int(output.request_id): output for output in engine.step() if output.finished}
    return [outputs[number] for number in range(len(rows))]


def write(path: Path, rows: list[dict[str, Any]], outputs: list[Any]) -> None:
    """One parquet file with the rows in order."""
    texts = [output.outputs[0] for output in outputs]
    columns = {
        "id": [row["id"] for row in rows],
        "source": [row["source"] for row in rows],
        "text": [text.text for text in texts],
        "finish_reason": [text.finish_reason for text in texts],
        "num_prompt_tokens": [len(output.prompt_token_ids) for output in outputs],
        "num_output_tokens": [len(text.token_ids) for text in texts],
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


METHODS = {"generate": generate, "chat": chat, "step": step}

if __name__ == "__main__":
    main()
