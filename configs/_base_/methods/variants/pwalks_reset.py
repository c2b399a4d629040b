# PWALKS, with the optimizer's momentum set to zero at each resampling.
psw = dict(type='PWALKS', last=0.25, optimizer_state='reset')
