"""CrewAI, imported so that it reports nothing and leaves the home folder alone.

Import this before anything of `crewai`.
"""

from shared import offline

offline.apply()
with offline.home_elsewhere():
    import crewai.flow.flow
    import crewai.flow.persistence
    import crewai.tools  # noqa: F401
