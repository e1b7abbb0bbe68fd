"""Loss and gradients equal TRL's, if TRL is here: CPO's with ``loss_type="sigmoid", cpo_alpha=0`` (GenARM's), DPO's."""

from __future__ import annotations

import warnings

import pytest
import torch

import tiny
from trimtab.rewards.encoding import EncodedPair
from trimtab.rewards.scoring import PairScorer
from trimtab.training import preference_loss

ROWS = [
    {"prompt": "why", "chosen": " please wait", "rejected": " no"},
    {"prompt": "how so", "chosen": " gladly", "rejected": " figure it out yourself"},
    {"prompt": "when", "chosen": " soon, thank you", "rejected": " soon, go away"},
]


def _cpo(model, tokenizer, folder):
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL warns that its experimental part may change
        cpo = pytest.importorskip("trl.experimental.cpo")
        config = cpo.CPOConfig(
            output_dir=str(folder),
            loss_type="sigmoid",
            cpo_alpha=0.0,
            beta=0.05,
            per_device_train_batch_size=3,
            max_length=64,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        return cpo.CPOTrainer(
            model=model, args=config, train_dataset=datasets.Dataset.from_list(ROWS), processing_class=tokenizer
        )


@pytest.mark.parametrize("make", [tiny.make_llama, tiny.make_gpt2])
def test_loss_and_gradients_equal_cpo(make, tmp_path):
    tokenizer = tiny.make_tokenizer(chat=False)
    model = make().requires_grad_(True)
    trainer = _cpo(model, tokenizer, tmp_path)
    features = [trainer.train_dataset[i] for i in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = trainer.data_collator(features)
        theirs, metrics = trainer.get_batch_loss_metrics(model, batch, train_eval="eval")
    parameters = list(model.parameters())
    expected = torch.autograd.grad(theirs, parameters)
    pairs = [_own(feature) for feature in features]
    scorer = PairScorer(model, max_length=64)
    chosen, rejected = scorer(model, scorer.layout(pairs), common_gradient=False)
    ours = preference_loss(chosen, rejected, beta=0.05).mean()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    assert float(chosen.mean().detach()) == pytest.approx(float(metrics["eval_logps/chosen"]), rel=1e-5)
    for a, b in zip(torch.autograd.grad(ours, parameters), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_loss_and_gradients_equal_dpo(beta, tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    tokenizer = tiny.make_tokenizer(chat=False)
    model, reference = tiny.make_llama(seed=1).requires_grad_(True), tiny.make_llama(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = trl.DPOConfig(
            output_dir=str(tmp_path),
            beta=beta,
            max_length=64,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = trl.DPOTrainer(
            model=model,
            ref_model=reference,
            args=config,
            train_dataset=datasets.Dataset.from_list(ROWS),
            processing_class=tokenizer,
        )
        features = [trainer.train_dataset[i] for i in range(3)]
        theirs = trainer.compute_loss(model, trainer.data_collator(features))
    parameters = list(model.parameters())
    expected = torch.autograd.grad(theirs, parameters)
    scorer = PairScorer(model, max_length=64, base=reference)
    pairs = [EncodedPair(f["prompt_ids"], f["chosen_ids"], f["rejected_ids"]) for f in features]
    chosen, rejected = scorer(model, scorer.layout(pairs), common_gradient=False, against_base=True)
    ours = preference_loss(chosen, rejected, beta=beta).mean()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    for a, b in zip(torch.autograd.grad(ours, parameters), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def _own(feature) -> EncodedPair:
    """Token ids as TRL prepared them: the prompt, and answers where its labels are not masked."""

    def answer(name):
        ids, labels = feature[f"{name}_input_ids"], feature[f"{name}_labels"]
        return [i for i, label in zip(ids, labels, strict=True) if label != -100]

    chosen = answer("chosen")
    prompt = feature["chosen_input_ids"][: len(feature["chosen_input_ids"]) - len(chosen)]
    return EncodedPair(prompt, chosen, answer("rejected"))
