"""A training run: how it starts, its folder, its records, and how it is loaded when it is done.

May import every other package; only the commands import this one. The files, in reading order:

- `setup`: the start of a run, the same for pre-training and fine-tuning, and the `Run` itself.
- `start_facts`: what all ranks of a start must have in common.
- `directory`: the run's folder: one writer at a time, the settings it was made with.
- `log`: its records: metrics.jsonl, TensorBoard, samples, status.json.
- `losses`: the losses it remembers, loss spikes, and the list of skipped steps.
- `budget`: what a resumed run says if its schedule ends at another step than before.
- `pre_training`: what a pre-training run has besides: corpora, sizes of batches, where it ends.
- `provenance`: what a result was made from, and what differs from another start.
- `fine_tuning`: what a fine-tuning run has besides: examples, their order, predictions, result.
- `planned`: what the result of a run that is not there yet would be made from.
- `suite_options`: the command line of the suite
- `trained`: a finished run loaded again, for evaluation, generation and export.
"""
