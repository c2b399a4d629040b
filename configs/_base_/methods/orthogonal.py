# OPT (arXiv 2004.04690): the neurons of each convolution are fixed, and what
# is learned is the orthogonal map that turns them together. It starts from the
# identity: in short runs that learns much faster than the paper's random R
# (orthogonal:start=random). All keys: help(mmpsw.engine.OrthogonalHook),
# and configs/orthogonal/README.md.
custom_hooks = [
    dict(type='mmpsw.OrthogonalHook', map='cayley', start='identity')
]
