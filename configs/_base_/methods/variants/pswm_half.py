# PSWM whose previous result counts as much as this period's mean.
psw = dict(type='PSWM', momentum=0.5)
