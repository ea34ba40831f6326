"""Turn completions into rewards.

scoring.py passes a member's completions to all reward functions and adds up their rewards
(weighted_sum.py). signature.py and marks.py say how to call a function, processes/ calls it under
limits of time and memory, call.py describes one call and its result, and returned_values.py reads
the numbers that the function returned. Two reward functions live here: reward_model.py, and
code_reward.py, which grades programs (programs/) in a sandbox (sandbox/).
"""
