"""HTML pages and tables about runs.

May import `model`, `settings` and `base`. The files, in reading order:

- `checking`: reads damaged files, and keeps what has the expected form.
- `run_files`: reads the files of a run folder.
- `facts`: the final numbers of a run, with their names.
- `expected_curves`: the losses that shipped configurations had, and runs like them.
- `expected`: what to compare a run's figures with: chance, and the paper's results.
- `charts`: the data of the page's charts, and its file for download.
- `blocks`: the parts that the page is made of.
- `overlap`: the examples that occur in the training text.
- `page`: the HTML page about one or several runs.
- `suite_files`: reads the runs of a suite from their folders.
- `suite_pictures`: pictures of the suite's scores.
- `suite_sections`: a table of a suite, as Markdown and HTML.
- `suite_noise`: the tables that tell differences from noise.
- `suite_table`: the suite's tables with the paper's results.
- `newest_records`: the end of a metrics.jsonl that grows.
- `run_states`: how runs go on, read from their folders again and again.
- `watch_table`: the table of runs in a terminal.
- `rendering`: renders the Jinja templates in templates/ and escapes all values.
- `figures`: figures for TensorBoard.
"""
