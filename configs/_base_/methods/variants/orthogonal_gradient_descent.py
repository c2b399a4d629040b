# Q itself, kept orthogonal by its updates; the others decay by a tenth.
custom_hooks = [dict(type='mmpsw.OrthogonalHook', map='gradient_descent')]
