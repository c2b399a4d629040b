# From the identity, where Cayley's map turns fastest, not from a random R.
custom_hooks = [
    dict(type='mmpsw.OrthogonalHook', map='cayley', start='identity')
]
