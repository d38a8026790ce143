"""Agents that come with Lockstep.

`workers.agents.base` and `workers.agents.ppo` hold what does not depend on an array framework;
``workers.agents.<framework>`` holds the networks, the array operations and the update.
"""
