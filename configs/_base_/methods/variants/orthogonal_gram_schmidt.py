# Gram-Schmidt on R's rows.
custom_hooks = [dict(type='mmpsw.OrthogonalHook', map='gram_schmidt')]
