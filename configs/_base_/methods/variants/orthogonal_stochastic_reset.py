# The same, with batch norm's scale and shift started anew where rows are
# drawn, as in the authors' code.
custom_hooks = [
    dict(
        type='mmpsw.OrthogonalHook',
        map='gram_schmidt',
        stochastic=True,
        period=44,
        reset_norms=True)
]
