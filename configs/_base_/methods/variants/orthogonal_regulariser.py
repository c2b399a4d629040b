# No constraint, but 0.1 ||R R^T - I||_F in the loss.
custom_hooks = [dict(type='mmpsw.OrthogonalHook', map='regulariser')]
