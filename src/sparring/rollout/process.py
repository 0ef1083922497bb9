"""vLLM in this process: one program, one GPU that trainer and engine share."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sparring.lm.base import Completion, SamplingParams
from sparring.lm.hub import is_adapter
from sparring.rollout.base import EngineError, EngineInfo, check_request, read_completion, request_fields, served_rank
from sparring.rollout.folders import adapter_rank, check_folder, tensor_shapes
from sparring.rollout.images import PromptImages, check_shown, shown


class ProcessEngine:
    """A `RolloutEngine` that is vLLM's `LLM`, its core in this very process.

    vLLM seeds torch's global generators when it starts. VLLM_ENABLE_V1_MULTIPROCESSING is set to 0 in the environment
    unless it is set already.

    Args:
        model_folder: the model; on a CPU one with an output layer of its own (`folders.prepare_folder`).
        lora_rank: of the adapters that will come; None: none will.
        dtype: "auto", "float32", "bfloat16".
        memory: GiB for the cache of keys and values.
        max_len: most tokens of a prompt and its completion; None: the model's.
        seed: vLLM's own; completions have theirs.
        eager: no compilation and no CUDA graphs: a quicker start, slower completions.
        images: the images of prompts; None: prompts are text.

    Raises:
        EngineError: vLLM is absent, or doesn't take this model.
    """

    def __init__(
        self,
        model_folder: str | Path,
        *,
        lora_rank: int | None = None,
        dtype: str = "auto",
        memory: float = 4.0,
        max_len: int | None = None,
        seed: int = 0,
        eager: bool = False,
        images: PromptImages | None = None,
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise EngineError(
                "vLLM in this process needs vLLM: pip install 'vllm>=0.32'; or use a server (rollout.url)"
            )
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        import vllm  # pyright: ignore[reportMissingImports]
        from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

        folder, cpu = Path(model_folder), bool(current_platform.is_cpu())
        adapters = {} if lora_rank is None else {"enable_lora": True, "max_lora_rank": served_rank(lora_rank)}
        # See `base.serve_command`.
        unsplit = {"enable_chunked_prefill": False} if cpu else {}
        seeing: dict[str, Any] = {}
        if images is not None:
            seeing = {"mm_processor_kwargs": images.pixels, "limit_mm_per_prompt": {"video": 0}}
        with _refusals(f"vLLM doesn't take {model_folder}"):
            self._llm: Any = vllm.LLM(
                str(model_folder),
                dtype=dtype,
                kv_cache_memory_bytes=int(memory * 2**30),
                max_model_len=max_len,
                seed=seed,
                enforce_eager=eager,
                logprobs_mode="processed_logprobs",
                generation_config="vllm",
                **adapters,
                **unsplit,
                **seeing,
            )
        config = self._llm.llm_engine.vllm_config.model_config
        most = 0 if images is None else config.get_multimodal_config().get_limit_per_prompt("image")
        longest = config.max_model_len
        self.info = EngineInfo(str(model_folder), longest, vllm.__version__, lora_rank is not None, cpu, most)
        self._images = images
        self._shapes = tensor_shapes(folder) if folder.is_dir() else None
        self._last = str(model_folder)
        self._adapter: Any = None
        self._loaded = 0

    def generate(
        self, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, seeds: Sequence[int], *, adapter: bool
    ) -> list[list[Completion]]:
        """See `base.RolloutEngine.generate`."""
        from vllm import SamplingParams as Fields  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        check_request(self.info, prompts, params)
        check_shown(self.info.model, self.info.images, prompts)
        if not prompts:
            return []
        params = params if self._images is None else self._images.params(params)
        asked = n if params.temperature > 0 else 1  # greedy ones are all the same
        with _refusals("vLLM wrote no completions"):
            outputs = self._llm.generate(
                [self._prompt(ids) for ids in prompts],
                [
                    Fields(**request_fields(params, asked, seed), output_kind=RequestOutputKind.FINAL_ONLY)
                    for _, seed in zip(prompts, seeds, strict=True)
                ],
                lora_request=self._adapter if adapter else None,
                use_tqdm=False,
            )
            self._refuse_others(prompts, outputs)
            return [[_read(row) for row in output.outputs] * (n // asked) for output in outputs]

    def update(self, folder: Path, version: int) -> None:
        """See `base.RolloutEngine.update`."""
        folder = folder.resolve()
        if is_adapter(folder):
            self._load_adapter(folder, version)
        else:
            self._shapes = check_folder(folder, self._shapes, cpu=self.info.cpu)
            try:
                self._reload(str(folder))
            except EngineError:
                with suppress(EngineError):  # the first error says more
                    self._reload(self._last)
                raise
            self._last = str(folder)
        self._llm.reset_prefix_cache()
        if self._images is not None:  # see `weights.clear_caches`
            self._llm.reset_mm_cache()
            self._llm.llm_engine.reset_encoder_cache()

    def check(self) -> None:
        """See `base.RolloutEngine.check`: what is in this process lives as long as it."""

    def close(self) -> None:
        """See `base.RolloutEngine.close`: memory is freed."""
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None

    def _prompt(self, ids: Sequence[int]) -> dict[str, Any]:
        if self._images is not None and shown(ids):
            return self._images.in_process(ids)
        return {"prompt_token_ids": list(ids)}

    def _refuse_others(self, prompts: Sequence[Sequence[int]], outputs: Sequence[Any]) -> None:
        """Raise ValueError where vLLM put other tokens in an image's place."""
        if self._images is None:
            return
        for ids, output in zip(prompts, outputs, strict=True):
            if wrong := self._images.difference(ids, output.prompt_token_ids):
                raise ValueError(wrong)

    def _reload(self, path: str) -> None:
        with _refusals(f"vLLM doesn't take the weights of {path}"):
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        # vLLM looks there for the image processor too, from now on; new weights come without one.
        self._llm.llm_engine.vllm_config.model_config.model = self.info.model

    def _load_adapter(self, folder: Path, version: int) -> None:
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        adapter_rank(folder)  # refuses what is no adapter
        self._loaded += 1  # names and numbers are never used again, so no adapter is taken for another one
        request = LoRARequest(f"sparring-{version}.{self._loaded}", self._loaded, str(folder))
        with _refusals(f"vLLM doesn't take the adapter {folder} (it takes those of the lora_rank it was made for)"):
            self._llm.llm_engine.add_lora(request)
        self._adapter = request


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    from vllm.exceptions import VLLMError  # pyright: ignore[reportMissingImports]

    try:
        yield
    except (ValueError, RuntimeError, OSError, VLLMError) as error:
        raise EngineError(f"{what}: {error}") from error


def _read(row: Any) -> Completion:
    if row.finish_reason not in {"stop", "length"}:
        raise ValueError(f"a completion ended with {row.finish_reason!r}")
    logprobs = [entry[token].logprob for entry, token in zip(row.logprobs, row.token_ids, strict=True)]
    return read_completion(list(row.token_ids), logprobs, row.finish_reason)
