"""Chat models for agents: a scripted one, whose replies are known, and the local engine's."""
