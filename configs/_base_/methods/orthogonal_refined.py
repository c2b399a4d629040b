# The paper's refined start: W0's hyperspherical energy is minimised first.
custom_hooks = [
    dict(
        type='mmpsw.OrthogonalHook',
        map='cayley',
        start='identity',
        refine=200)
]
