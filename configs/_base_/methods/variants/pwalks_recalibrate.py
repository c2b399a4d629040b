# PWALKS, with batch-norm statistics of 100 training batches.
psw = dict(type='PWALKS', last=0.25, buffers='recalibrate')
