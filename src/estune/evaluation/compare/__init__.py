"""The same model, prompts, rewards, tokens and seeds under several methods: ES by estune, RL by TRL.

methods.py says what each method is, plan.py which runs that makes, run.py has them done one process each, es.py and rl.py do
them, and table.py and plots.py show what came out. Only es.py and rl.py import torch or TRL.
"""
