"""The transformers Trainer makes the optimizer from its own arguments, localized; its logs say what was updated.

python examples/trainer_factory.py
"""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from localopt import AboveMean, Smoothed
from localopt.integrations.transformers import LocalizationCallback, localized_optimizer

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
rows = torch.randint(64, (64, 16))


def make_trainer(folder: str) -> Trainer:
    args = TrainingArguments(
        folder,
        learning_rate=3e-3,
        weight_decay=0.1,
        max_steps=20,
        logging_steps=10,
        save_steps=10,
        use_cpu=True,
        report_to="none",  # "tensorboard": each layer's norm and scale are drawn there
    )
    trainer = Trainer(
        LlamaForCausalLM(config),
        args,
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        optimizer_cls_and_kwargs=localized_optimizer(args, Smoothed(AboveMean(), beta=0.9)),
    )
    trainer.add_callback(LocalizationCallback(trainer))
    return trainer


with tempfile.TemporaryDirectory() as folder:
    whole = make_trainer(folder)
    whole.train()
    resumed = make_trainer(folder)
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-10")

same = all(map(torch.equal, resumed.model.parameters(), whole.model.parameters()))
print(f"resumed from step 10, the run ended with {'the same' if same else 'other'} weights")
