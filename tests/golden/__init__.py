"""Golden values: small committed results that runs in users' hands depend on.

A run that was begun with one version must go on with the next one: the same windows in the same
order, the same dropout masks, the same splits, the same error lines. `NAME.json` holds the values
of one subject, the module NAME computes them, and `tests/test_golden.py` compares the two.

A change of one of these values is a new version of what it describes. The new code must still read
and continue what the old version wrote. Only then write the values anew, and say so in the commit:

    python -m tests.golden              all subjects
    python -m tests.golden order        one of them

Read in this order: `store` (files, digests, folders), `order`, `dropout`, `fine_tuning`, `splits`,
`prepared`, `tokenizers`, `model`, `settings`, `refusals` (how an error line is taken), and the
errors of `errors_settings`, `errors_preparation`, `errors_tasks`, `errors_runs`.
"""
