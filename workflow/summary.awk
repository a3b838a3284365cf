# What a stage says about itself, out of everything that its job said:  awk -v stage=mine -f workflow/summary.awk logs/dvc/mine.log
$1 == "made" { on = any = 1 }
NF == 0 || /lock file/ { on = 0 }
on
END { if (!any) print "kept " stage ": unchanged, restored or fetched" }
