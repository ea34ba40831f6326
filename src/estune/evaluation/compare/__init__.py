"""Compare estune's ES with TRL's RL on the same model, prompts, rewards, tokens and seeds.

methods.py      the methods, their settings and learning rates
runs.py         the runs of a comparison: each method, learning rate and seed
execute.py      start a process for each run, one after another
child.py        what such a process does
es.py, rl.py    a run with estune, and a run with TRL
token_marks.py  when a run is evaluated and when it ends
table.py        tables of the results
plots.py        plots of the results
"""
