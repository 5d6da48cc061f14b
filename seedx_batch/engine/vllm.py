"""The engine on vLLM's offline engine, the same for 0.18 and what came after: the only place that imports vLLM.

Must never know a shard, a file or a job; what differs between vLLM's versions ends here.
"""

import contextlib
import inspect
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from seedx_batch.engine import compile_cache
from seedx_batch.engine.tokenization import Tokenization, check_fits
from seedx_batch.errors import (
    EngineConfigError,
    EngineDied,
    EngineError,
    Fault,
    RowRejected,
    SeedxBatchError,
    SpecError,
)
from seedx_batch.records import Candidate, EngineOutput, Params, Place, Prompt, Request, RequestId

try:
    import vllm
    from transformers.models.auto.tokenization_auto import get_tokenizer_config
    from vllm import LLM, SamplingParams, envs, sampling_params
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
    from vllm.v1.engine.exceptions import EngineDeadError
    from vllm.v1.engine.llm_engine import LLMEngine

    from seedx_batch.engine import pacing, processes
except ImportError as error:
    raise EngineConfigError(f"vLLM cannot be imported here: {error}") from error

# VLLMValidationError is a ValueError up to 0.23 and none in 0.32.
_REFUSED = (ValueError, TypeError, VLLMValidationError)
_PACKAGES = ("torch", "transformers", "vllm-ascend", "torch-npu")
_CALLS: tuple[tuple[type, str, tuple[str, ...]], ...] = (
    (LLMEngine, "add_request", ("request_id", "prompt", "params")),
    (LLMEngine, "abort_request", ("request_ids",)),
    (LLMEngine, "step", ()),
    (LLM, "get_tokenizer", ()),
    (LLM, "generate", ("prompts", "sampling_params", "use_tqdm")),
)
_MAX_PREPARED = 1024
_MAX_REASON_CHARS = 400


@dataclass(slots=True)
class _Flight:
    """A request that is neither answered nor aborted; whether any of its tokens were told yet."""

    id: RequestId
    streams: bool
    told: bool = False


class VllmEngine:
    """One vLLM engine, in this process or in processes of its own, as VLLM_ENABLE_V1_MULTIPROCESSING says.

    Args:
        args: vLLM's EngineArgs by name.
        chat_template: a jinja text that replaces the model's own.

    Raises:
        EngineConfigError: vLLM refuses the arguments, or lacks what is used of it.
        EngineError: the engine cannot be built.
    """

    def __init__(self, args: Mapping[str, Any], chat_template: str | None = None) -> None:
        _check_vllm(None)
        self._llm: LLM | None = _build(args)
        _check_vllm(self._llm)
        self._engine = self._llm.llm_engine
        config = self._engine.vllm_config
        self.max_model_len: int = config.model_config.max_model_len
        self.max_num_seqs: int = config.scheduler_config.max_num_seqs
        self.versions: Mapping[str, str] = _versions()
        self.num_kv_tokens: int = (config.cache_config.num_gpu_blocks or 0) * config.cache_config.block_size
        self.block_size: int = config.cache_config.block_size
        self.dtype = str(config.model_config.dtype).removeprefix("torch.")
        self.num_steps = 0
        self.num_output_tokens = 0
        self.num_prefilled_tokens = 0
        self.last_step = (0.0, 0.0)
        self._fed_at = self._told_at = 0.0
        self._flights: dict[str, _Flight] = {}
        self._prepared: dict[int, tuple[Params, SamplingParams]] = {}
        tokenizer = self._llm.get_tokenizer()
        self._tokenization = Tokenization(tokenizer, chat_template, _needs_bos(config.model_config), self.max_model_len)
        self.eos_token_ids = _eos_token_ids(tokenizer.eos_token_id, config.model_config)
        self._pace = pacing.Pace(self._engine.engine_core) if pacing.is_paced(config) else None
        self._died: EngineDied | None = None
        self._closing = threading.Event()
        core = self._engine.engine_core
        processes.watch(core, self._closing)
        self._has_process = hasattr(core, "outputs_queue")
        if self._has_process:
            core.get_output = self._noting_when(core.get_output)

    @property
    def num_unfinished(self) -> int:
        """Requests that were added and are neither answered nor aborted."""
        return len(self._flights)

    def check_params(self, params: Params) -> None:
        """Lets pass what vLLM accepts, asking it with a request that is taken back at once.

        Raises:
            SpecError: in vLLM's words.
            EngineConfigError: a parameter that this vLLM lacks.
        """
        known = {"repetition_detection", *SamplingParams.__struct_fields__}
        faults = [
            Fault(f"decoding.{name}", f"vLLM {vllm.__version__} has no such sampling parameter")
            for name in params
            if name not in known or name.startswith("_")
        ]
        if faults:
            raise SpecError(faults)
        try:
            self._engine.add_request(
                request_id="check", prompt={"type": "token", "prompt_token_ids": [0]}, params=_prepare(params)
            )
        except EngineDeadError as error:
            raise EngineDied("the engine died at its first request; its log says why") from error
        except _REFUSED as error:
            raise SpecError(Fault("decoding", f"vLLM refuses it: {_reason(error)}")) from error
        self._engine.abort_request(["check"])

    def check_prompt(self, prompt: Prompt, prompt_token_ids: list[int]) -> None:
        """Lets pass a prompt whose tokens begin with the beginning-of-sequence token once, where the model wants one.

        Raises:
            SpecError: it is missing or doubled.
        """
        self._tokenization.check(prompt, prompt_token_ids)

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens; see Engine."""
        return self._tokenization.encode(prompt)

    def decode(self, token_ids: Sequence[int], prompt_token_ids: Sequence[int] = ()) -> str:
        """The text that tokens add to a prompt's; see Engine."""
        return self._tokenization.decode(token_ids, prompt_token_ids)

    def add(self, request: Request) -> None:
        """Takes a request in; see Engine."""
        name = _name(request.id)
        if name in self._flights:
            raise ValueError(f"{request.id} is unfinished already")
        if self._died:
            raise self._died
        check_fits(len(request.prompt_token_ids), self.max_model_len)
        try:
            self._engine.add_request(
                request_id=name,
                prompt={"type": "token", "prompt_token_ids": request.prompt_token_ids},
                params=_prepare_stream(request) if request.streams else self._params(request.params),
            )
        except EngineDeadError as error:
            self._died = EngineDied("vLLM's engine died; its log says why")
            raise self._died from error
        except _REFUSED as error:
            raise RowRejected("refused", f"vLLM refuses it: {_reason(error)}") from error
        if not self._flights:
            self._fed_at = time.monotonic()
        self._flights[name] = _Flight(request.id, request.streams)

    def step(self) -> list[EngineOutput]:
        """What one step of vLLM's gave; see Engine."""
        if self._died:  # vLLM would wait for ever
            raise self._died
        if not self._flights:
            return []
        called_at = time.monotonic()
        try:
            if self._pace is not None:
                self._pace.go_on()
            told = self._engine.step()
        except EngineDeadError as error:
            self._died = EngineDied("vLLM's engine died; its log says why")
            raise self._died from error
        except SeedxBatchError:  # a signal's handler raised it
            raise
        except Exception as error:  # in this process vLLM lets anything through, and is not to be trusted after it
            self._died = EngineDied(f"vLLM's engine failed in a step: {_reason(error)}")
            raise self._died from error
        self.num_steps += 1
        if self._has_process and self._pace is None:  # it steps on as long as it has requests
            self.last_step = (max(self.last_step[1], self._fed_at), self._told_at)
        else:
            self.last_step = (called_at, self._told_at if self._has_process else time.monotonic())
        outputs = []
        for output in told:
            flight = self._flights.get(output.request_id)
            if flight is None or not (output.finished or flight.streams):  # aborted, or nothing to tell yet
                continue
            if output.finished:
                del self._flights[output.request_id]
            outputs.append(self._output(flight, output))
        return outputs

    def abort(self, requests: Iterable[RequestId]) -> None:
        """Forgets requests; see Engine."""
        names = [name for name in map(_name, requests) if self._flights.pop(name, None) is not None]
        if names:
            self._engine.abort_request(names)

    def continuations(self, prompts: Sequence[list[int]], params: Sequence[Params]) -> list[list[int]]:
        """The output tokens of prompts, all generated in one call; for comparisons rather than for jobs.

        Raises:
            EngineError: vLLM refuses them, or failed.
        """
        if self._llm is None:
            raise EngineDied("the engine is closed")
        given = [{"prompt_token_ids": token_ids} for token_ids in prompts]
        try:
            outputs = self._llm.generate(
                prompts=given, sampling_params=[SamplingParams(**asked) for asked in params], use_tqdm=False
            )
        except SeedxBatchError:  # a signal's handler raised it
            raise
        except Exception as error:  # as in `step`
            raise EngineError(f"vLLM failed: {_reason(error)}") from error
        return [list(output.outputs[0].token_ids) for output in outputs]

    def close(self) -> None:
        """Ends the engine and its processes."""
        if self._llm is None:
            return
        self._closing.set()
        processes.end(self._engine.engine_core)
        self._llm = None

    def _output(self, flight: _Flight, output: Any) -> EngineOutput:
        """Our form of vLLM's RequestOutput."""
        num_prompt_tokens, num_cached_tokens = len(output.prompt_token_ids), max(0, output.num_cached_tokens or 0)
        if not flight.told:
            flight.told = True
            self.num_prefilled_tokens += num_prompt_tokens - num_cached_tokens
        self.num_output_tokens += sum(len(one.token_ids) for one in output.outputs)
        candidates: tuple[Candidate, ...] = ()
        if output.finished:
            candidates = tuple(
                Candidate(one.text, one.finish_reason, len(one.token_ids), one.cumulative_logprob)
                for one in output.outputs
            )
        places = _places(output.outputs[0]) if flight.streams else ()
        return EngineOutput(flight.id, candidates, num_prompt_tokens, num_cached_tokens, places)

    def _noting_when(self, get_output: Callable[[], Any]) -> Callable[[], Any]:
        """`get_output` of vLLM's client, which notes when the engine process was done with the step."""

        def noted() -> Any:
            outputs = get_output()
            self._told_at = outputs.timestamp
            return outputs

        return noted

    def _params(self, params: Params) -> SamplingParams:
        """vLLM's form; made once for params that rows share (a seed belongs to one row), by identity."""
        if "seed" in params:
            return _prepare(params)
        known = self._prepared.get(id(params))
        if known is None:
            if len(self._prepared) >= _MAX_PREPARED:
                self._prepared.clear()
            known = self._prepared[id(params)] = (params, _prepare(params))
        return known[1]


def _name(request_id: RequestId) -> str:
    (shard, position), sequence = request_id
    return f"{shard}/{position}/{sequence}"


def _places(output: Any) -> tuple[Place, ...]:
    """The tokens of a CompletionOutput whose logprobs are flat: at each place the token's own, then the likeliest."""
    flat = output.logprobs
    if not output.token_ids:
        return ()
    ranges = zip(output.token_ids, flat.start_indices, flat.end_indices, strict=True)
    return tuple(
        Place(token_id, list(zip(flat.token_ids[start + 1 : end], flat.logprobs[start + 1 : end], strict=True)))
        for token_id, start, end in ranges
    )


def _prepare_stream(request: Request) -> SamplingParams:
    """vLLM's form for a request that is answered token by token, and may be forked or be a fork (forking.py)."""
    fork: dict[str, Any] = {"name": _name(request.id)}
    if request.fork_of is not None:
        fork |= {"fork_of": _name(request.fork_of), "num_shared": len(request.prompt_token_ids) - 1}
    return SamplingParams(
        **request.params,
        detokenize=False,
        flat_logprobs=True,
        skip_clone=True,
        extra_args={"kv_transfer_params": fork},
        output_kind=RequestOutputKind.DELTA,
    )


def _prepare(params: Params) -> SamplingParams:
    given = dict(params)
    if (structured := given.get("structured_outputs")) is not None:
        given["structured_outputs"] = StructuredOutputsParams(**structured)
    if (detection := given.get("repetition_detection")) is not None:
        form = getattr(sampling_params, "RepetitionDetectionParams", None)
        if form is None:
            raise EngineConfigError(f"vLLM {vllm.__version__} has no repetition_detection; leave it out of decoding")
        given["repetition_detection"] = form(**detection)
    return SamplingParams(**given, output_kind=RequestOutputKind.FINAL_ONLY)


def _check_vllm(llm: LLM | None) -> None:
    """Lets pass a vLLM that has all that is used of it beside its documented surface.

    Args:
        llm: None before there is one: then only classes are looked at.
    """
    absent = []
    for owner, call, names in _CALLS:
        parameters = inspect.signature(getattr(owner, call)).parameters if hasattr(owner, call) else None
        if parameters is None:
            absent.append(f"{owner.__name__}.{call}")
        else:
            absent += [f"{owner.__name__}.{call}({name}=)" for name in names if name not in parameters]
    if llm is not None:
        engine = getattr(llm, "llm_engine", None)
        core = getattr(engine, "engine_core", None)
        resources = getattr(core, "resources", None)
        owned = [
            (llm, "llm_engine"),
            (engine, "vllm_config"),
            (engine, "engine_core"),
            (core, "get_output"),
            (core, "shutdown"),
        ]
        if resources is not None:
            owned += [(core, "outputs_queue"), (resources, "engine_dead"), (resources, "engine_manager")]
        absent += [f"{type(thing).__name__}.{name}" for thing, name in owned if not hasattr(thing, name)]
    if absent:
        raise EngineConfigError(f"vLLM {vllm.__version__} is not one this program knows: it lacks {', '.join(absent)}")


def _build(args: Mapping[str, Any]) -> LLM:
    try:
        if envs.VLLM_ENABLE_V1_MULTIPROCESSING:
            return processes.in_deaf_thread(lambda: LLM(**args))
        compile_cache.mend()
        return LLM(**args)
    except SeedxBatchError:  # a signal's handler raised it
        raise
    except _REFUSED as error:
        raise EngineConfigError(f"vLLM refuses the engine's arguments: {_reason(error)}") from error
    except Exception as error:  # whatever a model, a driver or a device can break
        raise EngineError(f"vLLM's engine cannot be built: {_reason(error)}") from error


def _eos_token_ids(of_tokenizer: int | None, model_config: Any) -> frozenset[int]:
    """As vLLM sees it, whatever `generation_config` says about the file's sampling parameters."""
    listed = model_config.try_get_generation_config().get("eos_token_id")
    found = listed if isinstance(listed, list) else [listed]
    return frozenset(token_id for token_id in (of_tokenizer, *found) if token_id is not None)


def _needs_bos(model_config: Any) -> bool:
    """Whether the model's files say that prompts begin with BOS; transformers 5 may load a tokenizer without obeying.

    Gemma needs it whatever they say: without it the model copies its prompt.
    """
    if str(getattr(model_config.hf_config, "model_type", "")).startswith("gemma"):
        return True
    config = get_tokenizer_config(
        model_config.tokenizer,
        revision=model_config.tokenizer_revision,
        trust_remote_code=model_config.trust_remote_code,
    )
    return bool(config.get("add_bos_token"))


def _reason(error: BaseException) -> str:
    """What vLLM says, in one line of bearable length."""
    details: Callable[[], list[dict[str, Any]]] | None = getattr(error, "errors", None)
    if callable(details):  # pydantic's own text ends in the arguments and an address
        text = "; ".join(str(detail["msg"]).removeprefix("Value error, ") for detail in details())
    else:
        text = str(error) or type(error).__name__
    return textwrap.shorten(text, _MAX_REASON_CHARS, placeholder=" ...")


def _versions() -> dict[str, str]:
    return {"vllm": vllm.__version__, **dict(_installed(_PACKAGES))}


def _installed(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)
