"""A GRPO step with LoRA: Sparring's beside its own full fine-tuning, and beside TRL's with peft.

    python benchmarks/lora.py --json lora.json

8 prompts × 8 answers, β = 0.04 with k3, one AdamW update; rank 32 on every linear layer but the head, the frozen model
in bf16 and the adapters in fp32 on both sides, TRL with bf16 autocast and no gradient checkpointing. The sides take
turns in processes of their own (see sides.py), one thread each. Beforehand, on a small model in fp32, the gradients
of A and B are compared with TRL's on the completions that TRL sampled. Needs TRL: pip install 'sparring[oracle,lora]'.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from common import BETA, LR, Case, Clock, SparringStep, TimedModel, make_prompts, reward, save_model
from sides import Turn, alternate, ratios, summary
from sparring.advantages import standardised
from sparring.batching import Example
from sparring.data import PromptSet, Row
from sparring.games.dataset import Dataset
from sparring.learner import Learner, SampledKL, Update
from sparring.lm.base import SamplingParams
from sparring.lm.engines import open_lm, open_reference
from sparring.lm.lora import LoraSettings, add_lora
from sparring.losses import k3
from sparring.rendering import Renderer
from sparring.rewards.base import Reward
from sparring.roles import Role
from sparring.sampling.local import LocalSampler

RANK, ALPHA = 32, 32
PHASES = ("generate", "reference", "forward_backward", "optimiser", "other", "total")


class LoraStep(SparringStep):
    """GRPO steps of an adapter: the frozen model in compute precision, its own reference with the adapter off."""

    def __init__(self, case: Case, folder: Path, dtype: torch.dtype, token_budget: int, clock: Clock) -> None:
        self.clock = clock
        model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
        add_lora(model, LoraSettings(RANK, ALPHA), seed=0)
        policy = open_lm(model, dtype, trainable=True)
        timed = TimedModel(policy, clock, {"generate": "generate", "refresh": "optimiser"})
        reference = TimedModel(open_reference(policy, model, dtype), clock, {"score": "reference"})
        renderer = Renderer(PreTrainedTokenizerFast.from_pretrained(folder))
        self._sampler = LocalSampler(timed, reference, renderer, stop_ids=case.stop_ids)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, fused=True)
        optimizer.step = clock.timed("optimiser", optimizer.step)
        settings = Update(BETA, SampledKL(k3), max_grad_norm=1.0, token_budget=token_budget)
        self._learner = Learner(model, timed, reference, optimizer, settings)
        role = Role("solver", "{{ query }}", SamplingParams(case.tokens))
        prompts = PromptSet([Row(prompt) for prompt in make_prompts(case)], "prompts")
        self._game = Dataset(role, prompts, Reward(reward), case.queries, case.answers, standardised)
        self._step = 0


def lora_side(turn: Turn, case: Case, folder: Path, token_budget: int, steps: int) -> None:
    """Sparring, an adapter."""
    step = LoraStep(case, folder, torch.bfloat16, token_budget, Clock(cpu=True))
    while turn.begin():
        turn.end(step())


def full_side(turn: Turn, case: Case, folder: Path, token_budget: int, steps: int) -> None:
    """Sparring, every weight."""
    step = SparringStep(case, folder, torch.bfloat16, token_budget, Clock(cpu=True))
    while turn.begin():
        turn.end(step())


def make_trainer(
    model: PreTrainedModel, case: Case, folder: Path, *, steps: int, bf16: bool, callbacks: list[Any]
) -> Any:
    """TRL's GRPOTrainer with peft's LoRA of the same rank and layers."""
    from datasets import Dataset as Rows
    from peft import LoraConfig
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    return GRPOTrainer(
        model=model,
        reward_funcs=[reward],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=case.queries * case.answers,
            num_generations=case.answers,
            max_completion_length=case.tokens,
            max_steps=steps,
            beta=BETA,
            learning_rate=LR,
            loss_type="dapo",
            scale_rewards="group",
            top_k=0,
            bf16=bf16,
            gradient_checkpointing=False,
            use_bias_correction_kl=False,
            optim="adamw_torch_fused",
            max_grad_norm=1.0,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=Rows.from_list([{"prompt": [{"role": "user", "content": p}]} for p in make_prompts(case)]),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=callbacks,
    )


def trl_side(turn: Turn, case: Case, folder: Path, token_budget: int, steps: int) -> None:
    """TRL's own training loop; its methods are timed, not changed."""
    from transformers import TrainerCallback

    clock, lengths = Clock(cpu=True), []

    class Gate(TrainerCallback):
        """A turn from before a step's generation to after its optimiser step."""

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            assert turn.begin()
            clock.seconds.clear()
            self.start = clock.now()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            turn.end({"seconds": clock.take(clock.now() - self.start, "other"), "lengths": lengths.pop()})

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    trainer = make_trainer(model, case, folder, steps=steps, bf16=True, callbacks=[Gate()])
    score = trainer._get_per_token_logps_and_entropies
    timed_score = clock.timed("reference", score)

    def scored(*args: Any, **kwargs: Any) -> Any:
        # Without gradients it is asked only for the reference: a single on-policy update has no old log-probabilities.
        return (score if torch.is_grad_enabled() else timed_score)(*args, **kwargs)

    calculate = trainer._calculate_rewards

    def counted(inputs: Any, prompts: Any, completions: Any, completion_ids: Any) -> Any:
        lengths.append([len(ids) for ids in completion_ids])
        return calculate(inputs, prompts, completions, completion_ids)

    create = trainer.create_optimizer

    def create_timed(*args: Any, **kwargs: Any) -> Any:
        optimizer = create(*args, **kwargs)
        optimizer.step = clock.timed("optimiser", optimizer.step)
        return optimizer

    trainer._get_per_token_logps_and_entropies = scored
    trainer._calculate_rewards = counted
    trainer._generate_single_turn = clock.timed("generate", trainer._generate_single_turn)
    trainer._compute_loss = clock.timed("forward_backward", trainer._compute_loss)
    trainer.accelerator.backward = clock.timed("forward_backward", trainer.accelerator.backward)
    trainer.create_optimizer = create_timed
    trainer.train()


def agreement_side(turn: Turn, case: Case, folder: Path) -> None:
    """Loss and gradients of A and B on what TRL sampled, fp32: how far Sparring's are from TRL's, relatively."""
    assert turn.begin()
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer = make_trainer(model, case, folder, steps=1, bf16=False, callbacks=[])
    torch.manual_seed(1)
    theirs = {name.removeprefix("base_model.model."): p for name, p in trainer.model.named_parameters()}
    for name, parameter in theirs.items():
        if "lora_B" in name:  # zero at first, and then A has no gradient
            parameter.data.normal_(std=0.02)
    trainer.model.train()
    batch = trainer._generate_and_score_completions([row for row in trainer.train_dataset for _ in range(case.answers)])
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()

    mine = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    add_lora(mine, LoraSettings(RANK, ALPHA), seed=0)
    learned = {name: p for name, p in mine.named_parameters() if p.requires_grad}
    assert learned.keys() == {name for name, p in theirs.items() if p.requires_grad}
    for name, parameter in learned.items():
        parameter.data.copy_(theirs[name].data)
    policy = open_lm(mine, torch.float32, trainable=True)
    optimizer = torch.optim.SGD(learned.values(), lr=0.0)
    gradients: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        gradients.update({name: p.grad.clone() for name, p in learned.items() if p.grad is not None})

    optimizer.register_step_pre_hook(keep)
    settings = Update(BETA, SampledKL(k3), max_grad_norm=None)
    figures = Learner(mine, policy, open_reference(policy, mine, torch.float32), optimizer, settings).update(
        _examples(batch), 0.0
    )
    gaps: dict[str, float] = {"loss": abs(figures["loss"] - loss.item()) / abs(loss.item())}
    for part in ("lora_A", "lora_B"):
        names = [name for name in learned if part in name]
        ours, want = (torch.cat([g[n].flatten() for n in names]) for g in (gradients, _gradients(theirs)))
        gaps[part] = ((ours - want).norm() / want.norm()).item()
    turn.end({"seconds": {}, "gaps": gaps})


def _gradients(parameters: dict[str, Any]) -> dict[str, Tensor]:
    return {name: p.grad for name, p in parameters.items() if p.grad is not None}


def _examples(batch: dict[str, Tensor]) -> list[Example]:
    """TRL's batch under its loss_type="dapo": every token weighs the same."""

    def rows(name: str) -> list[tuple[int, ...]]:
        pairs = zip(batch[f"{name}_ids"], batch[f"{name}_mask"], strict=True)
        return [tuple(ids[mask.bool()].tolist()) for ids, mask in pairs]

    prompts, completions = rows("prompt"), rows("completion")
    weight = 1 / sum(map(len, completions))
    return [
        Example(prompt, ids, advantage, weight, torch.zeros(len(ids)).numpy(), "solver")
        for prompt, ids, advantage in zip(prompts, completions, batch["advantages"].tolist(), strict=True)
    ]


def agreement() -> dict[str, float]:
    """Relative differences from TRL with peft: the loss, and the gradients of A and of B."""
    case = Case("xs", 24, varied=True, queries=4, answers=4)
    with tempfile.TemporaryDirectory() as temporary:
        save_model(case, Path(temporary))
        steps = alternate({"agreement": agreement_side}, (case, Path(temporary)), steps=1, warmup=0)
    return steps["agreement"][0]["gaps"]


def compare(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """One case: medians of the three sides, and ratios."""
    sides = {"trl_lora": trl_side, "full": full_side, "lora": lora_side}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_model(case, folder)
        runs = alternate(sides, (case, folder, args.token_budget, args.steps + 1), steps=args.steps)
    row: dict[str, Any] = {"case": case.name, "rank": RANK}
    for name, steps in runs.items():
        row[name] = summary(steps)
        row[name]["tokens_per_step"] = sum(sum(step["lengths"]) for step in steps) / len(steps)
    per_token = {name: {c: row[name][c] / row[name]["tokens_per_step"] for c in ("cpu", "wall")} for name in sides}
    row["trl_over_lora"] = ratios(per_token["trl_lora"], per_token["lora"])
    row["full_over_lora"] = ratios(per_token["full"], per_token["lora"])
    return row


def print_row(row: dict[str, Any]) -> None:
    """A few lines for people."""
    trl, full = row["trl_over_lora"], row["full_over_lora"]
    print(f"\n{row['case']}, rank {row['rank']}, per completion token: TRL + peft / LoRA {trl['cpu']:.2f} by CPU time, "
          f"{trl['wall']:.2f} by the wall; full / LoRA {full['cpu']:.2f}, {full['wall']:.2f}")  # fmt: skip
    print(f"  {'':9}" + "".join(f"{name:>17}" for name in (*PHASES, "tokens", "peak MiB")))
    for name in ("trl_lora", "full", "lora"):
        cells = [f"{row[name]['seconds'].get(phase, 0.0):.3f}" for phase in PHASES]
        cells += [f"{row[name]['tokens_per_step']:.0f}", f"{row[name]['peak_memory'] / 2**20:.0f}"]
        print(f"  {name:9}" + "".join(f"{cell:>17}" for cell in cells), flush=True)


def main() -> None:
    """Compare, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["s", "m"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[64], help="longest answer")
    parser.add_argument("--varied", action="store_true", help="answers end at random")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a side")
    parser.add_argument("--token-budget", type=int, default=4_096, help="Sparring's learner.token_budget")
    parser.add_argument("--quick", action="store_true", help="one tiny case: that it runs, not what it takes")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    cases = [Case(size, tokens, args.varied) for size in args.sizes for tokens in args.tokens]
    if args.quick:
        args.steps, cases = 1, [replace(Case("xs", 12, True), queries=2, answers=4)]
    print(f"TRL {version('trl')}, peft {version('peft')}, torch {version('torch')}")
    gaps = agreement()
    print("fp32, relative to TRL + peft: " + ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items()))
    rows: list[dict[str, Any]] = [{"case": "agreement", "gaps": gaps}]
    for case in cases:
        rows.append(compare(case, args))
        print_row(rows[-1])
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
