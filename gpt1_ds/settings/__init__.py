"""The settings of a run: its YAML and the DeepSpeed JSON, checked before anything starts.

May import `distributed` and `base`. Files in reading order:

- `sections`: every setting with its default, its bounds and its description
- `shipped`: the YAML and JSON files of the package, by name
- `spelling`: how a setting is written that was named in another way
- `written`: YAML with the spelling of its scalars, without duplicate keys
- `fidelity`: what `fidelity: as_released` stands for.
- `loading`: defaults, YAML and command-line overrides, merged and checked
- `command_line`: the options of the training commands, and their `--help`
- `json_keys`: every key of a DeepSpeed JSON, with its type and bounds
- `json_check`: the JSON held against them, and what of it has no effect
- `json_optimizer`: its optimizer section against `optim`
- `deepspeed_json`: the DeepSpeed JSON, filled from the run and checked against it
"""
