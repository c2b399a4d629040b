# Loewdin's symmetric orthogonalisation: R's SVD.
custom_hooks = [dict(type='mmpsw.OrthogonalHook', map='loewdin')]
