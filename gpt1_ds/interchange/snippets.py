"""Programs of a model card: how a fine-tuned export answers as the run does, with transformers.

They are text, and a test runs each. `{out}` is the folder of the export.
"""

from gpt1_ds.tasks import Task
from gpt1_ds.tasks.similarity import ScoredSimilarity

PIPELINE = """from transformers import pipeline

classify = pipeline("text-classification", model="{out}", truncation=True)
"""
ONE_TEXT = 'print(classify("a text"))'
PAIR = 'print(classify({"text": "a premise", "text_pair": "a hypothesis"}))'
BOTH_ORDERS = """one, other = "a text", "another text"
orders = [{"text": one, "text_pair": other}, {"text": other, "text_pair": one}]
totals = {}
for scores in classify(orders, function_to_apply="none", top_k=None):
    for score in scores:
        totals[score["label"]] = totals.get(score["label"], 0) + score["score"]
"""
BEST = "print(max(totals, key=totals.get))"
EXPECTED_SCORE = """weights = {label: math.exp(total) for label, total in totals.items()}
total = sum(weights.values())
print(sum(float(label) * weight for label, weight in weights.items()) / total)"""
SQUARED_ERROR = 'print(min(max(totals["score"], 0.0), {highest}))'
MODEL = """import torch
from transformers import {auto_class}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{out}")
model = {auto_class}.from_pretrained("{out}")


def ids(text):
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


s, delim, e = tokenizer.convert_tokens_to_ids(["<s>", "<delim>", "<e>"])
"""
CHOICE = """context, question, answers = "a context", "a question", ["one", "other"]
room = tokenizer.model_max_length - 3
choices = [ids(answer)[: room // 2] for answer in answers]
longest = max(map(len, choices))
asked = ids(question)[: (room - longest) // 2]
told = ids(context)[: room - longest - len(asked)]
scores = []
for choice in choices:
    sequence = torch.tensor([[s, *told, *asked, delim, *choice, e]])
    with torch.no_grad():
        scores.append(model(sequence, attention_mask=torch.ones_like(sequence)).logits.item())
print(scores.index(max(scores)))"""
TAGS = """head = load_file("{out}/head.safetensors")
labels = {labels}
words = "some words of a sentence".split()
pieces = [ids(word) for word in words]
sequence = [s, *sum(pieces, [])][: tokenizer.model_max_length - 1] + [e]
with torch.no_grad():
    states = model(torch.tensor([sequence])).last_hidden_state[0]
best = (states @ head["weight"].T + head["bias"]).argmax(-1).tolist()
tags, place = [], 1
for of_word in pieces:
    is_there = of_word and place < len(sequence) - 1
    tags.append(labels[best[place]] if is_there else "O")
    place += len(of_word)
print(tags)"""


def snippet(task: Task, out: str) -> str:
    """The program for `task`; its last line prints the answer to the example in it."""
    if task.kind == "token_classification":
        program = MODEL.replace(
            "import torch\n", "import torch\nfrom safetensors.torch import load_file\n"
        )
        program = program.replace("{auto_class}", "AutoModel") + TAGS
        return program.replace("{labels}", repr(list(task.classes))).replace("{out}", out)
    if task.kind == "multiple_choice":
        program = MODEL.replace("{auto_class}", "AutoModelForSequenceClassification") + CHOICE
        return program.replace("{out}", out)
    start = PIPELINE.replace("{out}", out)
    if isinstance(task, ScoredSimilarity):
        if task.squared_error:
            return start + BOTH_ORDERS + SQUARED_ERROR.replace("{highest}", str(task.highest))
        return "import math\n\n" + start + BOTH_ORDERS + EXPECTED_SCORE
    if task.kind == "similarity":
        return start + BOTH_ORDERS + BEST
    return start + (ONE_TEXT if task.kind == "classification" else PAIR)
