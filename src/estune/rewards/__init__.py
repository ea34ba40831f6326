"""Completions become scores.

scoring.py takes a member's completions through all reward functions: signature.py and marks.py say
how to call one, processes/ calls it under limits of time and memory, returned_values.py reads what
it returned, and weighted_sum.py adds the functions up. Two reward functions live here:
reward_model.py, and code_reward.py, which grades programs (programs/) in a sandbox (sandbox/).
"""
