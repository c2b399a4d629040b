# PSWM over the last quarter of each epoch.
psw = dict(type='PSWM', momentum=0.5, last=0.25)
