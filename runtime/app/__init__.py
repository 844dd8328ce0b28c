"""The command line ``uid-run``: settings, jobs, the runner that does them, and what a person sees meanwhile."""
