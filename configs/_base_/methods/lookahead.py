# Lookahead (arXiv 1907.08610), k = 5 and alpha = 0.5: every five iterations
# the slow weights go half of the way to the fast ones, and these back to them.
custom_hooks = [dict(type='mmpsw.LookaheadHook', k=5, alpha=0.5)]
