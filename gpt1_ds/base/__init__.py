"""Basic helpers that every other package may use.

May import only the standard library, torch and tqdm. The files, in reading order:

- `beginning`: what a command does before its imports: Ctrl-C, warnings.
- `errors`: user errors with their exit codes, and the entry point of a command.
- `spinning`: OpenMP's threads, beside other programs.
- `options`: the parser of all command lines with its help, and paths on them.
- `version`: the version of the project.
- `streams`: output that may be lost while a command goes on.
- `memory`: how much memory there is, and errors that say there was too little.
- `background`: calls that may hang.
- `files`: atomic writes, flushing to the disk, locks, hashes.
- `urls`: addresses without their secrets, and what came from them.
- `bounds`: the domain of a number or a word.
- `arguments`: numbers and texts of a command line, lines of standard input.
- `records`: JSON-lines files such as metrics.jsonl.
- `formatting`: numbers as text.
- `progress`: how a command shows its progress: a bar on a terminal, plain lines elsewhere.
- `protocols`: types for the members of DeepSpeed's engine that the project uses.
"""
