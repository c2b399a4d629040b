# Lookahead (arXiv 1907.08610), k = 5 and alpha = 0.5: every five updates the
# weights go half of the way from the last ones that were kept. It is PSWM with
# a window of one update.
psw = dict(type='PSWM', period=5, by_epoch=False, last=1, momentum=0.5)
