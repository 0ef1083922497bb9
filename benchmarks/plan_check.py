"""What `sparring plan` says of memory, against what real steps allocate; and the table of docs/scaling.md.

    python benchmarks/plan_check.py --json plan_check.json
    python benchmarks/plan_check.py --table

A case is two whole LSP steps (the reference grades, a reward model scores) of a random Llama on one core, in a process
of its own. Measured is torch's own account in the second step: what the tensors at hand hold as a phase begins, and
what the profiler sees allocated and freed inside it. The process's resident memory would add what the CPU's matrix
library keeps for itself, which no GPU has.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.profiler import ProfilerActivity, profile
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from common import TEMPLATE
from sparring.batching import sequence_sum, to_examples
from sparring.build import build_learner, build_reward
from sparring.config import resolve
from sparring.domains import Query, Task
from sparring.games.lsp import LSP
from sparring.games.quality import ReferenceQuality
from sparring.lm.base import SamplingParams
from sparring.models import build_models
from sparring.plan import GPU, GPUS, Phase, plan
from sparring.plan.hardware import GIB
from sparring.plan.memory import phases
from sparring.plan.setup import read_shapes, set_up
from sparring.plan.workload import Call, Workload
from sparring.recipes.common import paper_run
from sparring.roles import Role
from sparring.sampling.local import LocalSampler
from sparring.settings import GameConfig, LearnerConfig, ModelConfig, RewardConfig, RunConfig
from sparring.text import TEXT

MIB = 2**20
CORE = GPU("one CPU core", 64, 1, 0.02, "cpu")
INSTRUCTION = 40  # words of the Challenger's and the grader's own


@dataclass(frozen=True)
class Case:
    """One run: model sizes, settings of `model` and `learner`, N, G and tokens a completion."""

    name: str
    hidden: int
    layers: int
    vocab: int
    model: dict[str, Any] = field(default_factory=dict)
    learner: dict[str, Any] = field(default_factory=dict)
    queries: int = 4
    answers: int = 4
    tokens: int = 48


SMALL, LARGE = {"hidden": 512, "layers": 8, "vocab": 8_192}, {"hidden": 1_024, "layers": 8, "vocab": 32_768}
LORA = {"tuning": "lora"}
# The generic path is left out in bfloat16: there transformers' head copies itself once a prompt, on a CPU alone.
CASES = (
    Case("full", **SMALL),
    Case("lora", **SMALL, model=LORA),
    Case("full, two micro-batches", **SMALL, learner={"token_budget": 500}),
    Case("full, checkpointing", **SMALL, model={"gradient_checkpointing": True}),
    Case("lora, checkpointing", **SMALL, model={**LORA, "gradient_checkpointing": True}),
    Case("full, exact KL, float32", **SMALL, model={"dtype": "float32"}, learner={"kl": "exact"}),
    Case("full, generic path, float32", **SMALL, model={"dtype": "float32", "engine": "generic"}),
    Case("full", **LARGE),
    Case("lora", **LARGE, model=LORA),
)
QUICK = tuple(
    Case(name, 128, 4, 1_024, model=model, queries=2, answers=3, tokens=16)
    for name, model in (("full", {}), ("lora", LORA))
)


def save(case: Case, folder: Path) -> None:
    """A random Llama, a reward model of its shape, and a tokenizer of words, under which texts keep their length."""
    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=case.vocab,
        hidden_size=case.hidden,
        intermediate_size=4 * case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=case.hidden // 64,
        num_key_value_heads=case.hidden // 128,
        max_position_embeddings=2048,
        num_labels=1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{i}": i for i in range(3, case.vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    kinds: dict[str, type[PreTrainedModel]] = {"model": LlamaForCausalLM, "reward": LlamaForSequenceClassification}
    for name, kind in kinds.items():
        kind(config).save_pretrained(folder / name)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", chat_template=TEMPLATE
        ).save_pretrained(folder / name)


def settings(case: Case, folder: Path) -> RunConfig:
    """The run's settings, one CPU core."""
    return RunConfig(
        threads=1,
        model=ModelConfig(path=str(folder / "model"), device="cpu", **case.model),
        game=GameConfig(domain="text", reward=RewardConfig(model=str(folder / "reward"))),
        learner=LearnerConfig(**case.learner),
    )


def planned(case: Case, folder: Path) -> list[Phase]:
    """The plan's phases for exactly the tokens that the case plays."""
    config, t = settings(case, folder), case.tokens
    rows = case.queries * case.answers
    calls = (
        Call("challenger", case.queries, 1, INSTRUCTION, t, 1),
        Call("solver", case.queries, case.answers, t, t, case.queries),
        Call("grader", rows, 1, INSTRUCTION + 2 * t, t, rows, trained=False),
    )
    setup = set_up(config, read_shapes(config), CORE, 1, "local")
    return phases(setup, Workload(calls, rows, 2 * t))


def measure(case: Case, folder: Path) -> dict[str, int]:
    """Bytes at each phase's peak in the second step."""
    config = settings(case, folder)
    built = build_models(config)
    game = _game(case, config)
    learner = build_learner(built, config, game)
    # No token ends a completion.
    sampler = LocalSampler(built.policy, built.reference, built.renderer, stop_ids=(), batch_tokens=2**18)
    peaks: dict[str, int] = {}
    for step in (1, 2):
        turns, peaks["sampling"] = _peak(lambda now=step: game.play(sampler.at(now)), step)
        payoffs, peaks["reward"] = _peak(lambda these=turns: game.payoffs(these), step)
        examples = to_examples(turns, game.baseline(turns, payoffs), sequence_sum)
        _, peaks["update"] = _peak(lambda these=examples: learner.update(these, 1e-6), step)
    return peaks


def _game(case: Case, config: RunConfig) -> LSP:
    """LSP that takes whatever the Challenger writes for a query, and grades at random."""
    own = " ".join(f"w{i}" for i in range(3, 3 + INSTRUCTION))
    params = SamplingParams(case.tokens)
    reward = build_reward(config, TEXT)
    assert reward is not None
    grader = Role("grader", own + " {{ query }} {{ answer }}", SamplingParams(case.tokens, temperature=0.0), 0.0)
    return LSP(
        challenger=Role("challenger", own, params),
        solver=Role("solver", "{{ query }}", params),
        tasks=[Task()],
        read_query=lambda text, task, complete: Query(text),
        reward=reward,
        n_queries=case.queries,
        n_answers=case.answers,
        quality=ReferenceQuality(grader, lambda text: 0.5),
    )


def _peak(run: Callable[[], Any], step: int) -> tuple[Any, int]:
    """What it returns, and the bytes of tensors at its peak (0 in the first step, which only warms up)."""
    if step == 1:
        return run(), 0
    held = _held()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return result, held + most


def _held() -> int:
    """Bytes of all tensors that are there, each storage once."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def compare(case: Case) -> dict[str, Any]:
    """Planned and measured bytes by phase; measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        save(case, Path(folder))
        found = {phase.name: phase for phase in planned(case, Path(folder))}
        command = [sys.executable, __file__, "--measure", folder, json.dumps(asdict(case))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        measured = json.loads(done.stdout.splitlines()[-1])
    rows = {
        name: {"planned": phase.peak, "measured": measured[name], "moment": phase.moment, "parts": phase.parts}
        for name, phase in found.items()
    }
    whole = {key: max(row[key] for row in rows.values()) for key in ("planned", "measured")}
    return {"case": asdict(case), "phases": rows, **whole, "ratio": whole["planned"] / whole["measured"]}


def show(row: dict[str, Any]) -> None:
    """One case as a line of Markdown: planned / measured MiB by phase, and the ratio at the peak."""
    case = row["case"]
    cells = [
        f"{phase['planned'] / MIB:.0f} / {phase['measured'] / MIB:.0f}"
        for phase in (row["phases"][name] for name in ("sampling", "reward", "update"))
    ]
    size = f"{case['hidden']} x {case['layers']}, {case['vocab']}"
    print(f"| {size} | {case['name']} | {' | '.join(cells)} | {row['ratio']:.3f} |", flush=True)


# The table of docs/scaling.md

LLAMAS = {
    "Llama-3.2-1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64},
    "Llama-3.2-3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "head_dim": 128},
    "Llama-3.1-8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128},
    "Llama-3.1-70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "head_dim": 128},
}
FLEETS = (1, 8, 32)
# The paper's settings but for N, so that every GPU has queries, and the reward model, which is served; completions are
# half as long as they may be. Several GPUs have rollout servers, of policy and reference.
SETTINGS = ("game.n_queries=64", "game.reward.model=served", "game.reward.url=http://reward:8000")
SERVERS = ("rollout.engine=vllm", "rollout.url=http://policy:8000", "rollout.reference_url=http://reference:8000")


def table(folder: Path) -> None:
    """Memory per GPU and floor of time per step, H100, full and LoRA."""
    print("| model | tuning | " + " | ".join(f"{n} x H100" for n in FLEETS) + " |")
    print("|---|---|" + "---|" * len(FLEETS))
    for name, sizes in LLAMAS.items():
        config = LlamaConfig(
            vocab_size=128_256,
            num_attention_heads=sizes["hidden_size"] // sizes["head_dim"],
            num_key_value_heads=8,
            tie_word_embeddings=sizes["hidden_size"] < 4096,
            **sizes,
        )
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder / name)
        for tuning in ("full", "lora"):
            cells = [_cell(folder / name, tuning, gpus) for gpus in FLEETS]
            print(f"| {name} | {tuning} | {' | '.join(cells)} |")


def _cell(path: Path, tuning: str, gpus: int) -> str:
    """GiB per GPU and seconds per step; `+ n` GPUs of rollout servers; `cut` where the adapter's base is sharded.

    What doesn't fit is said, and has no time.
    """
    given = (*SETTINGS, f"model.path={path}", f"model.tuning={tuning}", *(SERVERS if gpus > 1 else ()))
    strategies = ("auto", "shard") if tuning == "lora" and gpus > 1 else ("auto",)
    for strategy in strategies:
        config = resolve(paper_run(3e-6, kind="lsp"), None, (*given, f"parallel.strategy={strategy}"))
        made = plan(config, GPUS["h100"], gpus=gpus, rollout="local" if gpus == 1 else "server", mean_length=0.5)
        if made.fits:
            cut = ", cut" if strategy == "shard" else ""
            servers = f" + {made.server_gpus}" if made.server_gpus else ""
            return f"{made.peak / GIB:.0f} GiB{cut}, {made.total_seconds:.2g} s{servers}"
    return f"{made.peak / GIB:.0f} GiB: too much"


def main() -> None:
    """Compare every case, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of docs/scaling.md and stop")
    parser.add_argument("--quick", action="store_true", help="two tiny cases")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "CASE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        folder, case = args.measure
        print(json.dumps(measure(Case(**json.loads(case)), Path(folder))))
    elif args.table:
        with tempfile.TemporaryDirectory() as folder:
            table(Path(folder))
    else:
        compare_all(QUICK if args.quick else CASES, args.json)


def compare_all(cases: Sequence[Case], file: Path | None) -> None:
    """Print a table of planned / measured MiB, and write the rows where asked."""
    print("| hidden x layers, vocabulary | settings | sampling | reward | update | planned / measured at the peak |")
    print("|---|---|---|---|---|---|", flush=True)
    rows = []
    for case in cases:
        rows.append(compare(case))
        show(rows[-1])
    if file is not None:
        file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
