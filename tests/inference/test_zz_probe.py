import time
from tests.inference.oof_runs import *
def test_probe(teachers, capsys):
    t=time.time(); 
    root=copy_of(teachers, Path('/tmp/helper_oof/p'), logits=False); print('copy', time.time()-t)
    t=time.time(); infer(root); print('infer', time.time()-t)
    t=time.time(); infer(root, infer_force_regen=True, infer_batch_tokens=16, infer_max_seq_len=512); print('infer small', time.time()-t)
    for f in range(3): print(array(root,'llama',f)[folds_of(root).fold==f][:3])
    out=capsys.readouterr().out
    open('/tmp/helper_oof/out.txt','w').write(out)
