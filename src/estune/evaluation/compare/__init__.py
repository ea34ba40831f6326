"""ES by estune and RL by TRL on the same model, prompts, rewards, tokens and seeds.

methods.py      what each method is
runs.py         which runs a comparison makes
execute.py      execute the runs, one process each
child.py        one run, in its process
es.py, rl.py    what that process does; only these import torch and TRL
token_marks.py  when a run is evaluated, and when it ends
table.py        figures and tables of the results
plots.py        curves of the results
"""
