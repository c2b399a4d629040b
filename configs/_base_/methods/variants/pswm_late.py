# PSWM from the second third of ten epochs on: its memory skips the beginning,
# which every average would rather forget.
psw = dict(type='PSWM', momentum=0.5, begin=3)
