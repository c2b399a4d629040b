# The paper's start, R from N(0, 1): slower than the identity in short runs.
custom_hooks = [dict(type='mmpsw.OrthogonalHook', map='cayley')]
