# PWALKS over the last half of each epoch.
psw = dict(type='PWALKS', last=0.5)
