"""A training run: how it starts, its folder, its records, and how it is loaded when it is done.

May import every other package. Only the commands import this one, and `gpt1_ds` itself at the first
use of `gpt1_ds.load`. The files, in reading order:

- `setup`: the start of a run, the same for pre-training and fine-tuning, and the `Run` itself.
- `memory_need`: the memory that it needs, told before anything is allocated.
- `start_facts`: what all ranks of a start must have in common.
- `directory`: the run's folder: one writer at a time, the settings it was made with.
- `board`: what TensorBoard shows of it: curves, their layout, settings, the command.
- `log`: its records: metrics.jsonl, TensorBoard, samples, status.json.
- `slow_ranks`: which rank is the slowest, and by how much.
- `wall_time`: what the time since its first start went to.
- `losses`: the losses it remembers, loss spikes, and the list of skipped steps.
- `plateau`: a run that predicts no more than how often each token occurs.
- `budget`: what a resumed run says if its schedule ends at another step than before.
- `words`: the words of text it has seen, and checkpoints at some numbers of them.
- `data_order`: the order of windows, which stays as the run began, and what it costs from a URL.
- `pre_training`: what a pre-training run has besides: corpora, sizes of batches, where it ends.
- `zero_shot`: benchmarks that a pre-training run scores as it goes on.
- `provenance`: what a result was made from, and what differs from another start.
- `task_data`: the examples of a fine-tuning run, as the model sees them.
- `transfer`: the weights that fine-tuning begins with.
- `fine_tuning`: what a fine-tuning run has besides: examples, their order, result.
- `ending`: what a run says at its end, and when it is started again after that.
- `planned`: what the result of a run that is not there yet would be made from.
- `suite_options`: the command line of the suite
- `suite_grid`: the combinations of the values that the suite tries.
- `suite_jobs`: the runs that a suite asks for.
- `suite_slurm`: a suite as a job array, and how its elements ended.
- `predictions`: tables of predictions, and the report by class that is made from one.
- `suite_resampling`: the bootstrap of a suite's scores, from its runs' predictions.
- `trained`: a finished run loaded again, for evaluation, generation and export.
- `exported`: a folder for transformers, loaded in the same way.
- `remote_run`: a run behind a URL, downloaded to a cache.
- `restoring`: the newest checkpoint of a mirror, for a start whose folder is gone.
- `inputs`: what the methods of `trained_model` take: texts, ids, examples of a task, numbers.
- `trained_model`: what `gpt1_ds.load` gives: a trained run as one Python object.
- `fine_tuned`: a fine-tuned run loaded again, its probabilities, its calibration.
- `estimate`: memory and time of a run on a cluster, computed
- `held_memory`: the memory that a rank holds during a step, by part
- `rehearsal`: the real engine as one rank of many
- `rehearsal_host`: the operators and the time of its host
- `rehearsal_table`: what was rehearsed, beside the estimate
- `texts`: shards and files as documents of tokens, for `eval`.
- `overlap`: the evaluation sets that occur in a training text.
- `surprisal`: the nats of each word of a text.
- `text_scoring`: perplexities and bits a byte of a text.
- `zero_shot_scoring`: a pre-trained run on benchmarks and on tasks, for `eval` and `suite`.
- `task_scoring`: scores, predictions, ensembles and calibration, for `eval`.
"""
