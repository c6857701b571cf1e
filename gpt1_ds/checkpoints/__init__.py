"""Checkpoints: committed whole, verified before use, loaded into any layout of ranks and stages.

    checkpoints/step-00001000.tmp/  every rank writes, hashes and flushes its files here
    checkpoints/step-00001000/      the same folder, renamed once all ranks agree
    checkpoints/step-*.old.tmp/     on their way out: a thread deletes them
    checkpoints/latest              a text file with the name of the newest folder

Every name that is private to DeepSpeed's engine state, and every key of its files, lies in
`deepspeed_files`, `saved_parameters`, `flat_tensors` and `swap_files`. This package may import
`engine`, `model`, `data`, `settings`, `distributed` and `base`.

Files, in reading order:

- `state`: what `state.json` and `MANIFEST.json` hold, as dataclasses
- `folder`: names of files, the search for the newest checkpoint that verifies
- `saving`: the commit protocol, and checkpoints that are written while training goes on
- `agreeing`: what the ranks tell each other before and after they write
- `writing`: files that a thread writes, hashes and flushes
- `replicas`: what all ranks must have alike, compared before a save
- `removing`: folders that a thread deletes
- `loading`: resume a run; read weights
- `mirror`: copies of checkpoints at a URL
- `averaging`: the mean of the weights of several checkpoints
- `by_parameter`: weights and optimizer state into an engine of any layout
- `saved_parameters`: the parameters in the files of a checkpoint, element by element
- `deepspeed_files`: the files that DeepSpeed writes
- `flat_tensors`: the parameters in the flat tensors of a live DeepSpeed optimizer
- `swap_files`: optimizer state that lies on NVMe
"""
