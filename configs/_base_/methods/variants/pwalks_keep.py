# PWALKS, with the batch-norm statistics that the live weights have left.
psw = dict(type='PWALKS', last=0.25, buffers='keep')
