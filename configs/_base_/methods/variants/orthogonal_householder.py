# R's QR by reflections.
custom_hooks = [dict(type='mmpsw.OrthogonalHook', map='householder')]
